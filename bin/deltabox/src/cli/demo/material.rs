//! What the demo works on: `examples/demo`, built into the program.

use std::collections::BTreeMap;

use deltabox_api::{ApiError, ErrorKind};
use include_dir::{Dir, DirEntry, include_dir};
use serde::{Deserialize, Serialize};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../examples/demo");

/// `candidates.json`.
#[derive(Deserialize)]
pub struct Material {
    /// Directory with the program.
    pub program: String,
    pub test: Test,
    /// Command of the living test runner.
    pub runner: Vec<String>,
    pub candidates: Vec<Candidate>,
}

#[derive(Deserialize)]
pub struct Test {
    pub timeout_s: u64,
    /// Tests there have to be; fewer are worse, whatever they say.
    pub tests: u32,
}

/// A repair to try.
#[derive(Deserialize)]
pub struct Candidate {
    pub id: String,
    /// The candidate it builds on; the unchanged program when absent.
    pub parent: Option<String>,
    pub title: String,
    /// Files to put in place: path in the program, path in the material.
    pub files: BTreeMap<String, String>,
    pub delete: Vec<String>,
}

/// What a run of the tests said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub tests: u32,
    pub failures: u32,
    pub errors: u32,
}

fn broken(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        format!("the demo's material is broken: {what}"),
    )
}

impl Material {
    pub fn load() -> Result<Self, ApiError> {
        let file = FILES
            .get_file("candidates.json")
            .ok_or_else(|| broken("no candidates.json"))?;
        serde_json::from_slice(file.contents()).map_err(broken)
    }

    /// The program as a tar whose names are relative to where it is to be.
    pub fn program_tar(&self) -> Result<Vec<u8>, ApiError> {
        let program = FILES.get_dir(&self.program).ok_or_else(|| broken("no program"))?;
        let mut files = Vec::new();
        collect(program, &mut files);
        let prefix = format!("{}/", self.program);
        tar(files
            .into_iter()
            .filter_map(|(path, data)| Some((path.strip_prefix(&prefix)?.to_owned(), data))))
    }

    /// A candidate's files as a tar to be unpacked over the program.
    pub fn candidate_tar(&self, candidate: &Candidate) -> Result<Vec<u8>, ApiError> {
        let mut files = Vec::new();
        for (path, source) in &candidate.files {
            let file = FILES
                .get_file(source)
                .ok_or_else(|| broken(format!("no {source}")))?;
            files.push((path.clone(), file.contents()));
        }
        tar(files.into_iter())
    }
}

fn collect(directory: &Dir<'static>, files: &mut Vec<(String, &'static [u8])>) {
    for entry in directory.entries() {
        match entry {
            DirEntry::Dir(inner) => collect(inner, files),
            DirEntry::File(file) => files.push((file.path().to_string_lossy().into_owned(), file.contents())),
        }
    }
}

fn tar(files: impl Iterator<Item = (String, &'static [u8])>) -> Result<Vec<u8>, ApiError> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, data).map_err(broken)?;
    }
    tar.into_inner().map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_has_its_files_and_a_parent_before_it() {
        let material = Material::load().unwrap();
        assert!(material.program_tar().unwrap().len() > 1024);
        for (i, candidate) in material.candidates.iter().enumerate() {
            material.candidate_tar(candidate).unwrap();
            if let Some(parent) = &candidate.parent {
                assert!(
                    material.candidates[..i]
                        .iter()
                        .any(|earlier| earlier.id == *parent),
                    "{parent}"
                );
            }
        }
    }
}
