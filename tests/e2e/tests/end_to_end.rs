//! One test per driver. How much they do is set by the environment: `PROBE_SCENARIOS`, `PROBE_JOBS`,
//! `MODEL_OPERATIONS`, `MODEL_SEED`, `WATCH_CHECKPOINTS`, `REAL_EXTRAS`.

use deltabox_e2e::run_driver;

#[test]
fn each_probe_can_pass_and_can_fail() {
    run_driver("probes/selftest.py", &[]);
}

#[test]
fn probes_survive_checkpoint_rollback_and_death() {
    run_driver(
        "e2e/driver/probes.py",
        &[
            "--scenario",
            "go_on",
            "--scenario",
            "rollback",
            "--scenario",
            "killed",
        ],
    );
}

/// Of what is looked for again by its number, its name or its peer: that is where one state can be taken for another.
#[test]
fn probes_survive_the_way_from_branch_to_branch() {
    run_driver(
        "e2e/driver/probes.py",
        &[
            "--scenario",
            "branches",
            "--scenario",
            "ten",
            "mem_*",
            "ipc_*",
            "lock_*",
            "sock_*",
            "pipe_*",
            "fifo_*",
            "tty_*",
            "sig_*timer*",
        ],
    );
}

/// A few of each kind; all of them take minutes: `driver/probes.py --scenario fork --scenario fork_of_gone`.
#[test]
fn probes_survive_being_forked() {
    let arguments = "--scenario fork --scenario fork_of_gone blk_process mem_cow pipe_content run_job_tree \
                     sig_posix_timer_fires sock_tcp_queued thr_many tty_session";
    run_driver(
        "e2e/driver/probes.py",
        &arguments.split_whitespace().collect::<Vec<_>>(),
    );
}

/// A new seed each time, which is printed.
#[test]
fn random_states_come_back_exactly() {
    run_driver("e2e/driver/model.py", &["--operations", "300"]);
}

#[test]
fn a_watcher_sees_nothing_of_many_checkpoints() {
    run_driver("e2e/driver/watch.py", &["--checkpoints", "200"]);
}

/// All that are installed; `../real/fetch.sh` gets the others.
#[test]
fn real_programs_go_on_after_rollbacks() {
    run_driver("real/run.py", &[]);
}
