//! The load and the ledger of every request.
//!
//! A generator runs as a pod in the cluster ([`generator`], started by `serin-traffic`), since the way that counts leads
//! over the Service's cluster IP to all routers; a port-forward would end at one of them. The test process tells it what
//! to send and reads its account over [`control`]; [`Traffic`] is the test's end of that.
//!
//! - [`cases`]: requests and expected answers, from the files that `make models` wrote.
//! - [`check`]: is an answer right, and which model gave it (pure).
//! - [`ledger`]: the account of one load (pure).
//! - [`verdict`]: what an account says once it is known which revision serves which model (pure).
//! - [`split`]: is the split exact (pure).

pub mod cases;
pub mod check;
pub mod connection;
pub mod control;
pub mod generator;
pub mod ledger;
pub mod pod;
pub mod split;
pub mod verdict;
pub mod wire;

pub use pod::Traffic;
pub use verdict::Verdict;
