//! Making a tar of files, on the host or inside a sandbox.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Appends a file, a link, or a directory with everything in it, under the name `entry`. What is neither (sockets,
/// FIFOs, devices) is told to `left_out`.
pub fn append(
    tar: &mut Builder<impl Write>,
    source: PathBuf,
    entry: PathBuf,
    left_out: &mut dyn FnMut(&Path),
) -> io::Result<()> {
    // A stack instead of recursion: directories may be nested deeper than a thread's stack.
    let mut pending = vec![(source, entry)];
    while let Some((source, entry)) = pending.pop() {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", source.display()));
        let metadata = fs::symlink_metadata(&source).map_err(at)?;
        let mut header = Header::new_gnu();
        header.set_metadata(&metadata);
        if metadata.is_dir() {
            header.set_size(0);
            tar.append_data(&mut header, &entry, io::empty())?;
            for child in fs::read_dir(&source).map_err(at)? {
                let name = child.map_err(at)?.file_name();
                pending.push((source.join(&name), entry.join(&name)));
            }
        } else if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, &entry, fs::read_link(&source).map_err(at)?)?;
        } else if metadata.is_file() {
            header.set_size(metadata.len());
            let file = File::open(&source).map_err(at)?;
            // Exactly as long as announced, also if the file changes meanwhile.
            tar.append_data(
                &mut header,
                &entry,
                file.chain(io::repeat(0)).take(metadata.len()),
            )?;
        } else {
            left_out(&source);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_packed_without_what_is_no_file() {
        let place = tempfile::tempdir().unwrap();
        let long = "n".repeat(150);
        fs::create_dir_all(place.path().join("d").join(&long)).unwrap();
        fs::write(place.path().join("d").join(&long).join("f"), "content").unwrap();
        std::os::unix::fs::symlink("/any/where", place.path().join("d/l")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place.path().join("d/s")).unwrap();
        let mut tar = Builder::new(Vec::new());
        let mut left_out = Vec::new();
        append(&mut tar, place.path().join("d"), "renamed".into(), &mut |path| {
            left_out.push(path.to_owned())
        })
        .unwrap();
        assert_eq!(left_out, [place.path().join("d/s")]);
        let bytes = tar.into_inner().unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            found.push((
                entry.path().unwrap().display().to_string(),
                link.unwrap_or(content),
            ));
        }
        found.sort();
        let name = |rest: &str| format!("renamed{rest}");
        let expected = [
            (name(""), String::new()),
            (name("/l"), "/any/where".to_owned()),
            (name(&format!("/{long}")), String::new()),
            (name(&format!("/{long}/f")), "content".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = append(
            &mut Builder::new(Vec::new()),
            "/no/such".into(),
            "x".into(),
            &mut |_| {},
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("/no/such: "), "{error}");
    }
}
