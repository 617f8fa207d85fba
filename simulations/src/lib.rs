//! What is tried on the whole of Weft. For now the rules of the tree itself, in `tests/layout.rs`.
