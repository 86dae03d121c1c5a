//! A channel can be handed to a new program in the master's place, which is nothing that a worker sends: as
//! much of it as is needed to build.

use common::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Hex(String);

impl Hex {
    pub fn new(_bytes: &[u8]) -> Hex {
        Hex(String::new())
    }

    pub fn bytes(&self) -> Vec<u8> {
        Vec::new()
    }
}

pub struct Open;

impl Open {
    pub fn keep(&mut self, fd: impl AsFd) -> RawFd {
        fd.as_fd().as_raw_fd()
    }
}

pub struct Taken;

impl Taken {
    pub fn own(&mut self, _number: RawFd) -> Result<OwnedFd> {
        Err(Error::new("take the state over", "nothing was saved"))
    }

    pub fn shared(&mut self, number: RawFd) -> Result<std::rc::Rc<OwnedFd>> {
        self.own(number).map(std::rc::Rc::new)
    }
}
