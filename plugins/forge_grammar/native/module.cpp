// The extension forge_grammar._native: regular languages, and the machine that matches tokens against a grammar.
//
// Whatever computes for long lets go of the GIL; arguments are checked before.
#include "bindings.hpp"

NB_MODULE(_native, m) {
    m.doc() = "Native automata and matchers of forge-grammar";
    forge::grammar::bind_regular(m);
    forge::grammar::bind_machine(m);
}
