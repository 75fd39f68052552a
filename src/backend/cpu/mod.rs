//! The host as a device.
