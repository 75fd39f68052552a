//! Goal:   training tells of every pair what it saw, and it changes nothing; what was planted in
//!         tiny shards is found by `roclip-detect`, and listed so that others can use it; detectors
//!         compute what their papers say.
//! Method: files read by their format's own rules; a ring of the last captions as the model of the
//!         pool; golden values of numpy and scikit-learn (`golden/make_detect.py`); the program,
//!         run on shards with a picture that was put in many times.

mod golden;
mod program;
pub mod records;
