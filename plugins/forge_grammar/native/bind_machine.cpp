// Python's Vocabulary, Grammar and Matcher.
#include "bindings.hpp"

namespace forge::grammar {

void bind_machine(nanobind::module_&) {}

}  // namespace forge::grammar
