//! Single paths of another state, and what has no business outside.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use deltabox_layers::{Base, ChangeKind, Error, Restored, StoreKind, TextDiff, Way};
use support::{Sandbox, isolated, open, small_base};

#[test]
fn paths_come_back_one_by_one() {
    isolated(|dir| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, StoreKind::Btrfs);
        let mut sandbox = Sandbox::create(&store, dir, "root", base.clone());
        fs::create_dir_all(sandbox.path("data/deep/er")).unwrap();
        sandbox.write("data/deep/er/file", "one");
        sandbox.write("data/text", "a\nb\nc\n");
        symlink("/nowhere", sandbox.path("data/link")).unwrap();
        let one = sandbox.freeze(Way::Switch);
        fs::remove_dir_all(sandbox.path("data")).unwrap();
        fs::remove_file(sandbox.path("usr/bin/tool")).unwrap();
        sandbox.write("extra", "x");
        let _ = sandbox.freeze(Way::Snapshot);
        let view = store.view(&base, &one).unwrap();
        let restore = |path: &str| sandbox.files.restore_path(&view, Path::new(path));
        assert_eq!(restore("/data/deep/er/file").unwrap(), Restored::Copied);
        assert_eq!(sandbox.read("data/deep/er/file"), "one");
        assert!(!sandbox.has("data/text"));
        assert_eq!(restore("data").unwrap(), Restored::Copied);
        assert_eq!(sandbox.read("data/text"), "a\nb\nc\n");
        assert_eq!(
            fs::read_link(sandbox.path("data/link")).unwrap(),
            Path::new("/nowhere")
        );
        assert_eq!(restore("/usr/bin/tool").unwrap(), Restored::Copied);
        assert_eq!(fs::read(sandbox.path("usr/bin/tool")).unwrap(), [7u8; 10_000]);
        assert_eq!(restore("/extra").unwrap(), Restored::Removed);
        assert!(!sandbox.has("extra"));
        assert_eq!(restore("/never/was/there").unwrap(), Restored::Removed);
        assert!(matches!(restore("/"), Err(Error::BadPath { .. })));
        assert!(matches!(restore("/data/../etc"), Err(Error::BadPath { .. })));
    });
}

#[test]
fn no_link_of_the_sandbox_leads_out() {
    isolated(|dir| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, StoreKind::Directory);
        let mut sandbox = Sandbox::create(&store, dir, "root", base.clone());
        sandbox.write("etc/cron", "from the sandbox");
        let one = sandbox.freeze(Way::Switch);
        let outside = dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("cron"), "the host's").unwrap();
        fs::remove_dir_all(sandbox.path("etc")).unwrap();
        symlink(&outside, sandbox.path("etc")).unwrap();
        let view = store.view(&base, &one).unwrap();
        let error = sandbox
            .files
            .restore_path(&view, Path::new("/etc/cron"))
            .unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert_eq!(fs::read_to_string(outside.join("cron")).unwrap(), "the host's");
        // The link itself is replaced, not followed.
        sandbox.files.restore_path(&view, Path::new("/etc")).unwrap();
        assert_eq!(sandbox.read("etc/cron"), "from the sandbox");
        assert_eq!(fs::read_to_string(outside.join("cron")).unwrap(), "the host's");
    });
}

#[test]
fn differences_are_told_and_shown_as_text() {
    isolated(|dir| {
        let base = Base::directory(small_base(dir));
        let store = open(dir, StoreKind::Btrfs);
        let mut sandbox = Sandbox::create(&store, dir, "root", base.clone());
        let start = store.view(&base, &sandbox.files.last()).unwrap();
        sandbox.write("text", "a\nb\nc\n");
        fs::remove_file(sandbox.path("etc/passwd")).unwrap();
        fs::rename(sandbox.path("home"), sandbox.path("house")).unwrap();
        let one = sandbox.freeze(Way::Snapshot);
        let one = store.view(&base, &one).unwrap();
        sandbox.write("text", "a\nB\nc\n");
        sandbox.write("data", "\0\u{1}");
        let live = sandbox.files.view().unwrap();

        let told = |changes: Vec<deltabox_layers::Change>| -> Vec<(String, ChangeKind)> {
            changes
                .into_iter()
                .map(|change| (change.path.to_string_lossy().into_owned(), change.kind))
                .collect()
        };
        use ChangeKind::{Added, Changed, Deleted};
        let wanted = [
            ("etc/passwd", Deleted),
            ("home", Deleted),
            ("house", Added),
            ("text", Added),
        ];
        assert_eq!(
            told(start.diff(&one).unwrap()),
            wanted.map(|(path, kind)| (path.to_owned(), kind))
        );
        let wanted = [("data", Added), ("text", Changed)];
        assert_eq!(
            told(one.diff(&live).unwrap()),
            wanted.map(|(path, kind)| (path.to_owned(), kind))
        );
        // For formats without renames all that a renamed directory holds is told.
        let all = told(one.changes_to_base().unwrap());
        assert!(all.contains(&("house/user/notes".to_owned(), Added)), "{all:?}");

        let path = Path::new("/text");
        let TextDiff::Text(text) = one.text_diff(&live, path).unwrap() else {
            panic!("it is text")
        };
        assert_eq!(text, "--- a/text\n+++ b/text\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
        assert_eq!(
            one.text_diff(&live, Path::new("/data")).unwrap(),
            TextDiff::Binary
        );
    });
}
