//! Bytes that wait for room. Memory is held only while there are some.

/// First in, first out.
#[derive(Debug, Default)]
pub struct Queue {
    bytes: Vec<u8>,
    at: usize,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// None wait.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds some.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 && self.at >= self.len() {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// All of them.
    pub fn all(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The first `count` went.
    pub fn advance(&mut self, count: usize) {
        self.at += count.min(self.len());
        if self.is_empty() {
            *self = Queue::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_and_nothing_is_kept() {
        let mut queue = Queue::default();
        queue.push(b"abc");
        queue.advance(2);
        queue.push(b"de");
        assert_eq!(queue.all(), b"cde");
        queue.advance(9);
        assert!(queue.is_empty() && queue.bytes.capacity() == 0);
    }
}
