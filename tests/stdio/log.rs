//! Not written yet: this file is empty.
