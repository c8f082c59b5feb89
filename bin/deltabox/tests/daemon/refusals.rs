//! Wrong input: one clear line of what and why, one of what to do, and the documented exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Home, assert_clear};

#[test]
fn wrong_names_and_states_are_refused() {
    let home = Home::new();
    home.ok(&["create", "--name", "box"]);
    home.refuses(3, &["rm", "nobody"]);
    home.ok(&["rm", "--force", "nobody"]);
    home.refuses(4, &["create", "--name", "box"]);
    for name in ["Box", "../box", "-", ".x", "a/b", "a b", "", &"x".repeat(64)] {
        home.refuses(2, &["create", &format!("--name={name}")]);
    }
    for command in ["inspect", "log", "stats", "checkpoint", "diff"] {
        home.refuses(3, &[command, "nobody"]);
    }
    home.refuses(3, &["rollback", "box", "@"]);
    home.refuses(3, &["rollback", "box", "nothing"]);
    home.refuses(3, &["restore", "box", "--path", "/etc", "--from", "nothing"]);
    home.refuses(3, &["export", "box", "nothing", "-o", "/dev/null"]);
    home.ok(&["checkpoint", "box", "--label", "first"]);
    home.refuses(4, &["checkpoint", "box", "--label", "first"]);
    home.refuses(2, &["checkpoint", "box", "--label", "~1"]);
    home.refuses(3, &["rollback", "box", "~1"]);
    home.refuses(3, &["restore", "box", "--path", "/no/such", "--from", "first"]);
    home.refuses(
        125,
        &["exec", "box", "--user", "nobody-of-that-name", "--", "/bin/true"],
    );
    home.refuses(126, &["exec", "box", "--workdir", "/no/such", "--", "/bin/true"]);
    home.ok(&["exec", "-d", "box", "--", "/bin/sleep", "1000"]);
    let said = home.refuses(4, &["rm", "box"]);
    assert!(said.contains("1 command") && said.contains("--force"), "{said}");
    assert_eq!(home.sh("box", "echo alive"), "alive");
    home.ok(&["rm", "--force", "box"]);
    home.refuses(3, &["inspect", "box"]);
}

#[test]
fn limits_that_cannot_be_meant_are_refused() {
    let home = Home::new();
    home.refuses(2, &["create", "--cpus", "0"]);
    assert_eq!(home.fails(&["create", "--cpus", "NaN"]).0, 2);
    home.refuses(2, &["create", "--pids", "0"]);
    home.refuses(2, &["create", "--memory", "4K"]);
    assert_eq!(home.ok(&["ls", "--json"]), "[]");
}

#[test]
fn wrong_roots_are_refused_and_one_without_a_shell_works() {
    let home = Home::new();
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "x").unwrap();
    fs::create_dir(path("empty")).unwrap();
    home.refuses(3, &["create", "--rootfs", &path("missing")]);
    home.refuses(2, &["create", "--rootfs", &path("file")]);
    home.refuses(3, &["create", "--image", &path("missing.tar")]);
    home.refuses(2, &["create", "--image", &path("empty")]);
    home.ok(&["create", "--name", "bare", "--rootfs", &path("empty")]);
    let said = home.refuses(127, &["exec", "bare", "--", "/bin/sh", "-c", "true"]);
    assert!(said.contains("/bin/sh"), "{said}");
    let said = home.refuses(127, &["shell", "bare"]);
    assert!(said.contains("sh"), "{said}");
    // It is a sandbox all the same.
    home.ok(&["cp", &path("file"), "bare:/file"]);
    home.ok(&["checkpoint", "bare", "--label", "one"]);
    home.ok(&["rollback", "bare", "one"]);
    home.ok(&["cp", "bare:/file", &path("back")]);
    assert_eq!(fs::read(path("back")).unwrap(), b"x");
    let listed = home.ok(&["ls", "--json"]);
    assert_eq!(listed.matches("\"init_pid\"").count(), 1, "{listed}");
}

/// A `docker save` tar with one layer.
fn docker_save(layer: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("layer.tar", layer);
    add(
        "config.json",
        br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    add(
        "manifest.json",
        br#"[{"Config":"config.json","RepoTags":["t:1"],"Layers":["layer.tar"]}]"#,
    );
    tar.into_inner().unwrap()
}

/// A layer with entries of any name: the tar crate itself refuses the ones that lead out.
fn layer(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let data = if *kind == tar::EntryType::Symlink {
            header.as_ustar_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            ""
        } else {
            content
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn broken_and_hostile_images_are_refused_and_write_nothing_outside() {
    let home = Home::new();
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let target = place.path().join("victim");
    fs::create_dir(&target).unwrap();
    let out = target.to_str().unwrap();
    let long = format!("{}{out}/escaped", "../".repeat(12));
    let whole = docker_save(&layer(&[("file", tar::EntryType::Regular, "x")]));
    let hostile = [
        ("garbage", vec![0x5a; 5000]),
        ("empty", Vec::new()),
        ("truncated", whole[..whole.len() / 2 - 100].to_vec()),
        (
            "dots",
            docker_save(&layer(&[(&long, tar::EntryType::Regular, "x")])),
        ),
        (
            "link",
            docker_save(&layer(&[
                ("way", tar::EntryType::Symlink, out),
                ("way/escaped", tar::EntryType::Regular, "x"),
            ])),
        ),
    ];
    for (name, bytes) in hostile {
        let image = place.path().join(format!("{name}.tar"));
        fs::write(&image, bytes).unwrap();
        let (code, said) = home.fails(&["create", "--image", image.to_str().unwrap(), "--name", name]);
        // A link may also be resolved within the image's own root.
        if name != "link" || code != 0 {
            assert_eq!(code, 2, "{name}: {said}");
            assert_clear(&said);
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name} wrote outside");
    }
    let left = home.ok(&["ls", "--json"]);
    assert!(!left.contains("dots") && !left.contains("truncated"), "{left}");
}

#[test]
fn unusable_state_directories_are_refused() {
    let home = Home::new();
    let file = home.path().join("file");
    fs::write(&file, "x").unwrap();
    for place in [file.join("below"), "/proc/no/such".into(), file] {
        let output = home
            .deltabox(&["ls"])
            .env("DELTABOX_HOME", &place)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(8), "{}: {said}", place.display());
        assert_clear(&said);
        assert!(said.contains(place.to_str().unwrap()), "{said}");
    }
    // A mount that goes away with the namespace it is in.
    let script = "mount -t tmpfs -o ro none \"$DELTABOX_HOME\" && exec \"$0\" ls";
    let output = Command::new("unshare")
        .args(["-m", "/bin/sh", "-c", script, env!("CARGO_BIN_EXE_deltabox")])
        .env("DELTABOX_HOME", home.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert_clear(&said);
}

#[test]
fn without_root_it_says_so() {
    let place = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(place.path());
    let program = place.path().join("deltabox");
    fs::copy(env!("CARGO_BIN_EXE_deltabox"), &program).unwrap();
    open(&program);
    for command in ["ls", "serve"] {
        let output = Command::new(&program)
            .arg(command)
            .env("DELTABOX_HOME", place.path().join("home"))
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(6), "{said}");
        let said: String = said
            .lines()
            .filter(|l| !l.contains("INFO"))
            .collect::<Vec<_>>()
            .join("\n");
        assert_clear(&said);
        assert!(said.contains("root"), "{said}");
    }
}
