//! A program with a thread, an open file without a name and a log, which answers by FIFOs what it remembers.

use crate::support::Home;

const PROGRAM: &str = r"
import os, threading, time
gone = open('/tmp/gone', 'w+'); gone.write('kept'); gone.flush(); os.unlink('/tmp/gone')
log = open('/tmp/log', 'a')
memory = {'words': [], 'ticks': 0, 'ballast': os.urandom(300000)}
def tick():
    while True:
        memory['ticks'] += 1
        time.sleep(0.001)
threading.Thread(target=tick, daemon=True).start()
os.mkfifo('/tmp/in'); os.mkfifo('/tmp/out')
while True:
    word = open('/tmp/in').read().strip()
    if word:
        memory['words'].append(word)
        print(word, file=log, flush=True)
    before = memory['ticks']
    time.sleep(0.05)
    gone.seek(0)
    told = open('/tmp/log').read().split() == memory['words']
    with open('/tmp/out', 'w') as out:
        print(os.getpid(), gone.read(), memory['ticks'] > before, len(memory['ballast']), told, *memory['words'], file=out)
";

/// Starts it in the sandbox, which must be new.
pub fn start(home: &Home, sandbox: &str) {
    home.ok(&["exec", "-d", sandbox, "python3", "-c", PROGRAM]);
}

/// The script that tells it a word, which may be empty, and prints what it says.
pub fn telling(word: &str) -> String {
    format!("while ! [ -p /tmp/out ]; do sleep 0.02; done; echo {word} > /tmp/in; cat /tmp/out")
}

/// Tells it a word, which may be empty, and returns what it says: its pid and what it holds.
#[track_caller]
pub fn tell(home: &Home, sandbox: &str, word: &str) -> String {
    home.sh(sandbox, &telling(word))
}

/// Tells it a word, which may be empty. It must be whole, and its memory and its files must hold these words.
#[track_caller]
pub fn remembers(home: &Home, sandbox: &str, word: &str, wanted: &str) {
    assert_eq!(
        tell(home, sandbox, word),
        format!("2 kept True 300000 True {wanted}")
    );
}
