// What the extension's parts add to its module.
#pragma once

#include <nanobind/nanobind.h>

namespace forge::grammar {

void bind_regular(nanobind::module_& m);
void bind_machine(nanobind::module_& m);

}  // namespace forge::grammar
