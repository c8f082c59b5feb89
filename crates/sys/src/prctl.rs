//! `prctl` operations that rustix does not offer. (None is needed so far.)
