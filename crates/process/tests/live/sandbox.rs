//! A small sandbox for tests: a PID namespace with an init that takes orders, and a cgroup to freeze.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use deltabox_process::descriptor::{ContentDirectory, ExternalId};
use deltabox_process::{Engine, FirstId, Host, HostPid, Image, InsidePid, PageStore, Report, procfs};

/// Compiles a C program of this directory once.
pub fn compiled(source: &str) -> PathBuf {
    compiled_from(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/live")
            .join(source),
    )
}

/// Compiles a C program once.
pub fn compiled_from(source: &Path) -> PathBuf {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().unwrap());
    let _guard = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = directory.path().join(source.file_stem().unwrap());
    if !program.exists() {
        let mut command = Command::new("cc");
        command
            .args(["-O1", "-pthread", "-w", "-o"])
            .arg(&program)
            .arg(source)
            .args(["-lrt", "-lm", "-lutil"]);
        assert!(
            command.status().unwrap().success(),
            "the C compiler failed on {}",
            source.display()
        );
    }
    program
}

/// The sandbox; everything in it is killed and removed on drop.
pub struct Cell {
    outer: Child,
    init: HostPid,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    cgroup: PathBuf,
    root: File,
    net: File,
    directory: tempfile::TempDir,
    programs: u32,
    /// Fails freezing and making processes.
    pub refuse: bool,
}

fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    line.expect("the tests need a cgroup v2 hierarchy")
        .split(' ')
        .nth(1)
        .unwrap()
        .into()
}

impl Cell {
    pub fn new() -> Cell {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "deltabox-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let cgroup = cgroup_mount().join(name);
        fs::create_dir(&cgroup).unwrap();
        let mut outer = Command::new(compiled("init.c"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(outer.stderr.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let init = HostPid::new(line.trim().parse().expect("the init did not start")).unwrap();
        Cell {
            orders: outer.stdin.take().unwrap(),
            answers: BufReader::new(outer.stdout.take().unwrap()),
            outer,
            init,
            cgroup,
            root: File::open("/").unwrap(),
            net: File::open(format!("/proc/{init}/ns/net")).unwrap(),
            directory: tempfile::tempdir().unwrap(),
            programs: 0,
            refuse: false,
        }
    }

    fn order(&mut self, words: &[&str]) -> io::Result<i32> {
        writeln!(self.orders, "{}", words.join("\t"))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: i32 = line
            .trim()
            .parse()
            .map_err(|_| io::Error::other("init is dead"))?;
        if answer < 0 {
            Err(io::Error::from_raw_os_error(-answer))
        } else {
            Ok(answer)
        }
    }

    fn procs(&self) -> String {
        self.cgroup.join("cgroup.procs").to_str().unwrap().to_owned()
    }

    /// A directory for the test's files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a program in the sandbox.
    pub fn start(&mut self, command: &[&str]) -> Program {
        self.programs += 1;
        let path = |kind| self.directory.path().join(format!("{kind}{}", self.programs));
        let (input, output) = (path("in"), path("out"));
        for fifo in [&input, &output] {
            rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        }
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let (input_end, output_end) = (open(&input), open(&output));
        let procs = self.procs();
        let mut words = vec!["run", input.to_str().unwrap(), output.to_str().unwrap(), &procs];
        words.extend(command);
        let pid = InsidePid(self.order(&words).unwrap());
        Program {
            pid,
            input: input_end,
            output: output_end,
        }
    }

    /// The host pid of a process inside.
    pub fn host_pid(&mut self, pid: InsidePid) -> Option<HostPid> {
        let inside = |host: &HostPid| procfs::status(*host).is_ok_and(|status| status.inside() == pid);
        self.pids().unwrap().into_iter().find(inside)
    }

    fn frozen(&self, state: &str) -> io::Result<()> {
        fs::write(self.cgroup.join("cgroup.freeze"), state)?;
        let wanted = format!("frozen {state}");
        let start = Instant::now();
        while !fs::read_to_string(self.cgroup.join("cgroup.events"))?.contains(&wanted) {
            if state == "0" {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(1) {
                return Ok(());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.init.pid(), rustix::process::Signal::KILL);
        let _ = self.outer.wait();
        for _ in 0..200 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Host for Cell {
    fn freeze(&mut self) -> io::Result<()> {
        if self.refuse && self.programs == 1 {
            return Err(io::Error::other("refused by the test"));
        }
        self.frozen("1")
    }
    fn thaw(&mut self) -> io::Result<()> {
        self.frozen("0")
    }
    fn pids(&mut self) -> io::Result<Vec<HostPid>> {
        let text = fs::read_to_string(self.procs())?;
        Ok(text
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter_map(HostPid::new)
            .collect())
    }
    fn init_pid(&self) -> HostPid {
        self.init
    }
    fn first_id(&self) -> FirstId {
        FirstId(0)
    }
    fn set_next_pid(&mut self, pid: InsidePid) -> io::Result<()> {
        self.order(&["last", &(pid.0 - 1).to_string()]).map(drop)
    }
    fn skeleton(&mut self, pid: InsidePid) -> io::Result<HostPid> {
        if self.refuse {
            return Err(io::Error::other("refused by the test"));
        }
        let procs = self.procs();
        let got = InsidePid(self.order(&["skeleton", &procs, &pid.0.to_string()])?);
        self.host_pid(got)
            .ok_or_else(|| io::Error::other("the skeleton is not there"))
    }
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
    fn net_namespace(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }
}

/// How long an answer is waited for.
const PATIENCE_S: i64 = 5;

/// A running program, talked to by lines.
pub struct Program {
    pub pid: InsidePid,
    input: File,
    output: File,
}

impl Program {
    /// Sends bytes.
    pub fn send(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
    }

    /// Sends a line.
    pub fn tell(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line, not waited for forever.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut fds = [rustix::event::PollFd::new(
                &self.output,
                rustix::event::PollFlags::IN,
            )];
            let limit = rustix::event::Timespec {
                tv_sec: PATIENCE_S,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
            assert!(
                ready > 0,
                "no answer; so far: {:?}",
                String::from_utf8_lossy(&line)
            );
            let mut byte = [0];
            self.output.read_exact(&mut byte).unwrap();
            if byte[0] == b'\n' {
                return String::from_utf8_lossy(&line).into_owned();
            }
            line.push(byte[0]);
        }
    }

    /// Sends a line and returns the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }
}

/// A sandbox with its engine.
pub struct Sandbox {
    pub engine: Engine<Cell>,
    previous: Option<Image>,
    externals: u64,
}

impl Sandbox {
    pub fn new() -> Sandbox {
        let cell = Cell::new();
        let contents = cell.directory().join("contents");
        fs::create_dir(&contents).unwrap();
        let contents = Box::new(ContentDirectory::open(&contents).unwrap());
        Sandbox {
            engine: Engine::new(cell, PageStore::new(), contents),
            previous: None,
            externals: 0,
        }
    }

    pub fn start(&mut self, command: &[&str]) -> Program {
        let program = self.engine.host().start(command);
        for end in [&program.input, &program.output] {
            self.externals += 1;
            self.engine
                .externals()
                .register(ExternalId(self.externals), end.as_fd())
                .unwrap();
        }
        program
    }

    /// A Python that runs each line it is sent and prints what the line assigns to `_`.
    pub fn python(&mut self) -> Program {
        let script = "import sys\n_=None\nfor line in sys.stdin:\n    exec(line)\n    print(_, flush=True)\n";
        let path = self.engine.host().directory().join("loop.py");
        fs::write(&path, script).unwrap();
        let mut program = self.start(&["/usr/bin/python3", "-u", path.to_str().unwrap()]);
        assert_eq!(program.ask("_ = 'ready'"), "ready");
        program
    }

    pub fn checkpoint(&mut self) -> Image {
        self.timed_checkpoint().0
    }

    pub fn timed_checkpoint(&mut self) -> (Image, Report) {
        let mut stopped = self.engine.stop().unwrap();
        let survey = stopped.survey().unwrap();
        let image = stopped.capture(survey, self.previous.as_ref()).unwrap();
        let report = stopped.resume().unwrap();
        self.previous = Some(image.clone());
        (image, report)
    }

    /// As [`Sandbox::timed_checkpoint`], with memory copied before the stop.
    pub fn checkpoint_ahead(&mut self) -> (Image, Report) {
        self.engine.copy_ahead();
        self.timed_checkpoint()
    }

    pub fn rollback(&mut self, image: &Image) -> Report {
        let mut stopped = self.engine.stop().unwrap();
        stopped.restore(image).unwrap();
        stopped.resume().unwrap()
    }

    /// As [`Sandbox::checkpoint`], for those that may be refused.
    pub fn try_checkpoint(&mut self) -> Result<Image, String> {
        let mut stopped = self.engine.stop().map_err(|error| error.to_string())?;
        let survey = stopped.survey().map_err(|error| error.to_string())?;
        let image = stopped
            .capture(survey, self.previous.as_ref())
            .map_err(|error| error.to_string())?;
        stopped.resume().map_err(|error| error.to_string())?;
        self.previous = Some(image.clone());
        Ok(image)
    }

    /// As [`Sandbox::rollback`], for those that may fail.
    pub fn try_rollback(&mut self, image: &Image) -> Result<Report, String> {
        let mut stopped = self.engine.stop().map_err(|error| error.to_string())?;
        stopped.restore(image).map_err(|error| error.to_string())?;
        stopped.resume().map_err(|error| error.to_string())
    }

    /// Kills every process of the sandbox.
    pub fn kill_all(&mut self) {
        let start = Instant::now();
        loop {
            let pids = self.engine.host().pids().unwrap();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = rustix::process::kill_process(pid.pid(), rustix::process::Signal::KILL);
            }
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "the processes do not die"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn kill(&mut self, pid: InsidePid) {
        let host = self.engine.host().host_pid(pid).expect("no such process");
        rustix::process::kill_process(host.pid(), rustix::process::Signal::KILL).unwrap();
        let start = Instant::now();
        while self.engine.host().host_pid(pid).is_some() {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "the process does not die"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
