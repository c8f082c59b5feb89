//! What must hold when things go wrong: kills, full disks, wrong input, many callers at once.

mod crash;
mod crowd;
mod durable;
mod full;
mod leaks;
mod limits;
mod refusals;
mod states;
mod support;
mod work;
