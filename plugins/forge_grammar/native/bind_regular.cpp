// Python's Language.
#include "bindings.hpp"

namespace forge::grammar {

void bind_regular(nanobind::module_&) {}

}  // namespace forge::grammar
