//! The plain limit the benchmark puts beside the kernel: a tokio current-thread server that greets
//! like the kernel and answers whatever it reads with one fixed reply, doing nothing else.
//!
//! Usage: `bench_limits PORT`; run by tests/bench/run.py.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GREETING: &[u8] = b"Papa is home. Type \"help\" for commands.\n> ";
const REPLY: &[u8] = b"x\n> ";

fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("usage: bench_limits PORT"))?
        .parse()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            let tasks = tokio::task::LocalSet::new();
            tasks
                .run_until(async move {
                    loop {
                        let (stream, _) = listener.accept().await?;
                        tokio::task::spawn_local(async move {
                            // The client is gone: nothing to do about it.
                            let _ = serve(stream).await;
                        });
                    }
                })
                .await
        })
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(GREETING).await?;
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {
        stream.write_all(REPLY).await?;
    }
    Ok(())
}
