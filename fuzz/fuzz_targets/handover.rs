//! Bytes as records of a hand-over between processes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::handover::{Answers, Offers};

fuzz_target!(|record: &[u8]| {
    if let Ok(offers) = Offers::parse(record) {
        let mut again = Vec::new();
        Offers::begin(&mut again);
        offers.iter().for_each(|offer| offer.write(&mut again));
        assert_eq!(again, record);
    }
    if let Ok(answers) = Answers::parse(record) {
        let mut again = Vec::new();
        answers.write(&mut again);
        assert_eq!(again, record);
    }
});
