//! `serin-demo`.
fn main() {}
