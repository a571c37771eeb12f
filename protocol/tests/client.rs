//! The client against a kernel played by the test.
