//! Real programs work inside, before and after rollbacks.

use crate::support::Home;

fn before_and_after(make: &str, change: &str, check: &str) {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.sh("box", &format!("export HOME=/w; mkdir -p /w; cd /w; {make}"));
    let wanted = home.sh("box", &format!("export HOME=/w; cd /w; {check}"));
    home.ok(&["checkpoint", "box", "--label", "made"]);
    home.sh("box", &format!("export HOME=/w; cd /w; {change}"));
    let changed = home.sh("box", &format!("export HOME=/w; cd /w; {check}"));
    assert_ne!(changed, wanted);
    home.ok(&["checkpoint", "box", "--label", "changed"]);
    for (label, state) in [("made", &wanted), ("changed", &changed), ("made", &wanted)] {
        home.ok(&["rollback", "box", label]);
        assert_eq!(
            home.sh("box", &format!("export HOME=/w; cd /w; {check}")),
            *state,
            "{label}"
        );
    }
    // Work goes on from there as it would have gone before.
    home.sh("box", &format!("export HOME=/w; cd /w; {change}"));
}

#[test]
fn git_works() {
    before_and_after(
        "git init -q r; cd r; git config user.email a@b; git config user.name n; seq 1 500 > f; git add f; git commit -qm one",
        "cd r; git checkout -qb side; seq 1 600 > f; git commit -qam two; git gc -q",
        "cd r; git fsck --strict 2>&1 | grep -v notice || :; git log --format=%s; git status --porcelain; wc -l < f",
    );
}

#[test]
fn sqlite_works() {
    let run = |sql: &str| {
        format!(
            "/usr/bin/python3 -c \"import sqlite3; c = sqlite3.connect('db'); c.execute('pragma journal_mode=wal'); {sql}; c.commit()\""
        )
    };
    before_and_after(
        &run(
            "c.execute('create table t(a)'); c.executemany('insert into t values(?)', [(i,) for i in range(2000)])",
        ),
        &run("c.execute('delete from t where a % 3 = 0')"),
        &run(
            "print(c.execute('pragma integrity_check').fetchone(), c.execute('select count(*), sum(a) from t').fetchone())",
        ),
    );
}

#[test]
fn a_build_in_c_works() {
    before_and_after(
        "printf '#include <stdio.h>\\nint main(void) { puts(\"one\"); return 0; }\\n' > m.c; gcc -O1 -o m m.c",
        "sed -i s/one/two/ m.c; gcc -O1 -o m m.c",
        "./m",
    );
}

#[test]
fn a_wheel_is_installed() {
    let wheel = r#"/usr/bin/python3 - <<'END'
import zipfile
for version in ("1.0", "2.0"):
    info = f"probe_pkg-{version}.dist-info"
    with zipfile.ZipFile(f"probe_pkg-{version}-py3-none-any.whl", "w") as z:
        z.writestr("probe_pkg.py", f"version = '{version}'\n")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: probe-pkg\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
END
"#;
    let install = |version: &str| {
        format!(
            "d=/w/site; if /usr/bin/python3 -m pip --version >/dev/null 2>&1; then rm -rf $d; /usr/bin/python3 -m pip install -q --no-index \
             --root-user-action=ignore --no-deps --target $d probe_pkg-{version}-py3-none-any.whl; \
             else rm -rf $d; /usr/bin/python3 -m zipfile -e probe_pkg-{version}-py3-none-any.whl $d; fi"
        )
    };
    before_and_after(
        &format!("{wheel}{}", install("1.0")),
        &install("2.0"),
        "PYTHONPATH=/w/site /usr/bin/python3 -B -c 'import probe_pkg; print(probe_pkg.version)'; ls site",
    );
}

#[test]
fn a_tree_of_20000_files_works() {
    before_and_after(
        "for d in $(seq 1 100); do mkdir -p t/$d; done; seq 1 20000 | awk '{ f = \"t/\" ($1 % 100 + 1) \"/\" $1; print $1 > f; close(f) }'",
        "rm -rf t/7 t/8; find t -type f -name '*99' -exec sed -i s/9/x/ {} +; mv t/1 t/new; cp -r t/2 t/copy",
        "find t | wc -l; find t -type f | sort | xargs cat | cksum",
    );
}
