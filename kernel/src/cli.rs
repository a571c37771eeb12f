//! The command line of `papa`.

use std::path::PathBuf;

use clap::Parser;
use papa_protocol::size::ByteSize;

use crate::config::TcpAccess;

/// The port that is served where none is given.
pub const DEFAULT_PORT: u16 = 20202;

/// The papa kernel: holds sockets, processes and their output, and outlives
/// whatever manages them.
///
/// Examples:
///   papa                        serve port 20202 in the foreground
///   papa --daemonize --log-file /var/log/papa.log
///   telnet localhost 20202      then type: help
#[derive(Debug, Clone, Parser)]
#[command(name = "papa", version, verbatim_doc_comment)]
pub struct Args {
    /// Port to serve on localhost; 0 lets the system choose
    #[arg(short, long, default_value_t = DEFAULT_PORT, value_name = "PORT")]
    pub port: u16,

    /// Serve this unix socket instead of a port
    #[arg(short, long, value_name = "PATH", conflicts_with = "port")]
    pub unix_socket: Option<PathBuf>,

    /// Log every caller and request
    #[arg(short, long)]
    pub debug: bool,

    /// Return when it serves, or say why it cannot
    #[arg(long)]
    pub daemonize: bool,

    /// Write the daemon's process number here
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,

    /// Append the log to this file instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Put the log file aside as PATH.1 when it is this large; 0 for never
    #[arg(long, value_name = "SIZE", default_value = "4m")]
    pub log_bytes: ByteSize,

    /// What callers over TCP may do; the unix socket may do everything
    #[arg(long, value_enum, default_value_t, value_name = "ACCESS")]
    pub tcp: TcpAccess,
}
