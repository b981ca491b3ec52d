//! Kernel arrays of which each is needed when something is first written to it: what is not used takes no memory of this
//! process, nor, in a map of maps, of the kernel.
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use leaktrace_common::bytes_of;

use super::{
    object::{InnerMaps, KernelObject},
    shared::SharedArray,
    sys,
};

/// Arrays of one value each, by their index.
pub struct Arrays {
    map: OwnedFd,
    /// What makes them; none where they are the values of one array.
    inner: Option<InnerMaps>,
    value_bytes: usize,
    made: Vec<Option<SharedArray>>,
}

impl Arrays {
    /// Those in the map of maps `outer`; none is made yet.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn of(kernel: &KernelObject, outer: &str, value_bytes: usize) -> Result<Arrays> {
        Ok(Arrays { inner: Some(kernel.inner_maps(outer)?), ..Arrays::parts_of(kernel, outer, value_bytes)? })
    }

    /// The values of an array, each of which is mapped when it is needed.
    ///
    /// # Errors
    /// When the object has no such map.
    pub fn parts_of(kernel: &KernelObject, name: &str, value_bytes: usize) -> Result<Arrays> {
        let capacity = kernel.map(name)?.info()?.max_entries() as usize;
        let map = kernel.map_fd(name)?.try_clone_to_owned()?;
        Ok(Arrays { map, inner: None, value_bytes, made: (0..capacity).map(|_| None).collect() })
    }

    /// How many there can be.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.made.len()).unwrap_or(u32::MAX)
    }

    /// An array, if it was needed before.
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
                let array = make(&self.map, self.inner.as_ref(), index, self.value_bytes)?;
                Ok(place.insert(array))
            }
        }
    }
}

fn make(map: &OwnedFd, inner: Option<&InnerMaps>, index: u32, value_bytes: usize) -> Result<SharedArray> {
    const MAPPING: &str = "mapping an array of the kernel";
    let Some(inner) = inner else {
        let offset = index as usize * value_bytes;
        return SharedArray::map_part(map.as_fd(), offset, value_bytes).context(MAPPING);
    };
    let made = inner.make(None)?;
    let array = SharedArray::map(made.as_fd(), value_bytes).context(MAPPING)?;
    sys::map_update(map.as_fd(), bytes_of(&index), &made.as_raw_fd().to_ne_bytes())
        .context("handing out an array")?;
    Ok(array)
}
