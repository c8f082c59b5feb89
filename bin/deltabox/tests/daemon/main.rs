//! The command line with daemons of the tests' own: what it does, and what must hold when things go wrong: kills, full
//! disks, wrong input, many callers at once.

mod commands;
mod crash;
mod crowd;
mod durable;
mod faults;
mod fork;
mod full;
mod history;
mod leaks;
mod limits;
mod refusals;
mod states;
mod support;
mod terminal;
mod witness;
mod work;
