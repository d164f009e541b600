//! Numbers of variable length, and reading the fields of a section one after the other.
//!
//! A *varint* is unsigned LEB128: seven bits a byte, the lowest first, the top bit set in every
//! byte but the last; never longer than it must be. A *signed varint* holds `(n << 1) ^ (n >> 63)`,
//! so that small numbers of either sign are short. Nothing here allocates more than its input's
//! size allows, and nothing panics, whatever the input.

use crate::error::{Error, Result};

/// Appends a varint.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed varint.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a string: its length as a varint, and its bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// The fields of a section, read in order.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// `what` names the section in errors.
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    /// As [`Fields::new`], from byte `at` on, where a field begins.
    pub(super) fn at(what: &'static str, bytes: &'a [u8], at: usize) -> Self {
        Self { what, bytes, at }
    }

    /// Where the next field begins.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The error that this section is wrong at the field just read.
    pub(super) fn wrong(&self, why: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("{} before byte {}: {why}", self.what, self.at))
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(field) = rest.get(..count) else {
            return Err(self.wrong(format!("{count} bytes expected, {} left", rest.len())));
        };
        self.at += count;
        Ok(field)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// A checksum: 8 bytes, little-endian.
    pub(super) fn checksum(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint.
    pub(super) fn number(&mut self) -> Result<u64> {
        // Most are of one byte, and there are millions of them.
        match self.bytes.get(self.at) {
            Some(&byte) if byte & 0x80 == 0 => {
                self.at += 1;
                Ok(byte.into())
            }
            _ => self.long_number(),
        }
    }

    fn long_number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.wrong("a varint does not end"));
            };
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                return Err(self.wrong("a varint is longer than it must be"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.wrong("a varint does not end"))
    }

    /// A varint that fits 32 bits.
    pub(super) fn number32(&mut self) -> Result<u32> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong(format!("{number} exceeds 32 bits")))
    }

    /// A signed varint.
    pub(super) fn signed(&mut self) -> Result<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// How many things follow, each of at least `each` bytes: checked against the bytes left, so
    /// that it is safe to allocate for.
    pub(super) fn count(&mut self, each: usize) -> Result<usize> {
        let count = self.number()?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left / each => Ok(count),
            _ => Err(self.wrong(format!("{count} entries do not fit {left} bytes"))),
        }
    }

    /// Passes over so many varints, without a look at what they say.
    pub(super) fn skip(&mut self, count: usize) -> Result<()> {
        let ends = self.bytes[self.at..].iter().enumerate();
        let mut ends = ends.filter(|(_, byte)| **byte & 0x80 == 0);
        if let Some(last) = count.checked_sub(1) {
            let Some((end, _)) = ends.nth(last) else {
                return Err(self.wrong(format!("{count} numbers expected")));
            };
            self.at += end + 1;
        }
        Ok(())
    }

    /// As many varints as `count` says.
    pub(super) fn column(&mut self, count: usize) -> Result<Vec<u64>> {
        (0..count).map(|_| self.number()).collect()
    }

    /// A string.
    pub(super) fn text(&mut self) -> Result<&'a str> {
        let length = self.count(1)?;
        let bytes = self.bytes(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.wrong("a name is not UTF-8"))
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Result<()> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(self.wrong(format!("{left} bytes too many"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_read_back_as_they_were_put(number: u64, signed: i64, text in "\\PC*") {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            put_signed(&mut bytes, signed);
            put_text(&mut bytes, &text);
            let mut fields = Fields::new("test", &bytes);
            prop_assert_eq!(fields.number().unwrap(), number);
            prop_assert_eq!(fields.signed().unwrap(), signed);
            prop_assert_eq!(fields.text().unwrap(), text.as_str());
            fields.end().unwrap();
        }

        #[test]
        fn what_parses_has_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut fields = Fields::new("test", &bytes);
            if let Ok(number) = fields.number() {
                let mut again = Vec::new();
                put(&mut again, number);
                prop_assert_eq!(&bytes[..fields.at], &again);
            }
        }
    }

    #[test]
    fn a_count_that_the_bytes_cannot_hold_is_refused() {
        let mut bytes = Vec::new();
        put(&mut bytes, u64::MAX);
        bytes.extend([0; 20]);
        let error = Fields::new("test", &bytes).count(4).unwrap_err();
        assert!(error.to_string().contains("do not fit 20 bytes"), "{error}");
        let mut fields = Fields::new("test", &[5, 0, 0, 0, 0, 0]);
        assert_eq!(fields.count(1).unwrap(), 5);
    }

    #[test]
    fn numbers_are_passed_over_as_they_are_read() {
        let mut bytes = Vec::new();
        for number in [5, 300, 0, u64::MAX, 127] {
            put(&mut bytes, number);
        }
        for count in 0..=5 {
            let mut read = Fields::new("test", &bytes);
            read.column(count).unwrap();
            let mut passed = Fields::new("test", &bytes);
            passed.skip(count).unwrap();
            assert_eq!(passed.position(), read.position());
        }
        let error = Fields::new("test", &bytes).skip(6).unwrap_err();
        assert!(error.to_string().contains("6 numbers expected"), "{error}");
    }

    #[test]
    fn numbers_that_exceed_64_bits_are_refused() {
        let mut bytes = [0xff; 10];
        bytes[9] = 2;
        assert!(Fields::new("test", &bytes).number().is_err());
        bytes[9] = 1;
        assert_eq!(Fields::new("test", &bytes).number().unwrap(), u64::MAX);
        assert!(Fields::new("test", &[0xff; 11]).number().is_err());
    }
}
