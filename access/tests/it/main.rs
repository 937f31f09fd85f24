//! Signing in, over real servers.
