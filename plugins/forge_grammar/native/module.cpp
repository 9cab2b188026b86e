// The extension forge_grammar._native: regular languages, and the machine that matches tokens against a grammar.
//
// Whatever computes for long lets go of the GIL; arguments are checked before.
#include "bindings.hpp"

NB_MODULE(_native, m) {
    m.doc() = "Native automata and matchers of forge-grammar";
    nanobind::set_leak_warnings(false);  // caches of automata live as long as the interpreter
    forge::grammar::bind_regular(m);
    forge::grammar::bind_machine(m);
}
