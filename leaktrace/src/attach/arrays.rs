//! Kernel arrays in a map of maps, each made when it is first written to: what is not used takes no memory, neither the
//! kernel's nor this process's.
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use leaktrace_common::bytes_of;

use super::{
    object::{InnerMaps, KernelObject},
    shared::SharedArray,
    sys,
};

/// Arrays of one value each, by their index in the map of maps.
pub struct Arrays {
    outer: OwnedFd,
    inner: InnerMaps,
    value_bytes: usize,
    made: Vec<Option<SharedArray>>,
}

impl Arrays {
    /// Those of the map of maps `outer`; none is made yet.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn of(kernel: &KernelObject, outer: &str, value_bytes: usize) -> Result<Arrays> {
        let capacity = kernel.map(outer)?.info()?.max_entries() as usize;
        Ok(Arrays {
            outer: kernel.map_fd(outer)?.try_clone_to_owned()?,
            inner: kernel.inner_maps(outer)?,
            value_bytes,
            made: (0..capacity).map(|_| None).collect(),
        })
    }

    /// How many there can be.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.made.len()).unwrap_or(u32::MAX)
    }

    /// An array, if it was made.
    pub fn get(&self, index: u32) -> Option<&SharedArray> {
        self.made.get(index as usize)?.as_ref()
    }

    /// An array, which is made if need be.
    ///
    /// # Errors
    /// When there can be no such array, or the kernel refuses it.
    pub fn get_or_make(&mut self, index: u32) -> Result<&mut SharedArray> {
        let place = self.made.get_mut(index as usize).context("there is no place for the array")?;
        match place {
            Some(array) => Ok(array),
            None => {
                let map = self.inner.make(None)?;
                let array = SharedArray::map(map.as_fd(), self.value_bytes)
                    .context("mapping an array of the kernel")?;
                sys::map_update(self.outer.as_fd(), bytes_of(&index), &map.as_raw_fd().to_ne_bytes())
                    .context("handing out an array")?;
                Ok(place.insert(array))
            }
        }
    }
}
