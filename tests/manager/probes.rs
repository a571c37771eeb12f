//! Readiness that outlives the manager, and listeners watched from outside, with a real kernel in
//! between.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use papa_client::{Address, Client, Options, Pushes};
use papa_manager::config::Readiness;
use papa_manager::probe::ready::{Gate, Means, held};
use papa_manager::probe::{ProbeError, demand};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::Process;
use papa_protocol::text::ByteString;

use papa_harness::{Kernel, procfs, wait_until};

const WORKER: &str = "circus.web.1";
const SOON: Duration = Duration::from_secs(20);
/// Python's way to say something to the socket systemd's way.
const SAY: &str = "import os,socket,sys\na='\\0'+os.environ['NOTIFY_SOCKET'][1:]\n\
    for m in sys.argv[1:]: socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM).sendto(m.encode(),a)\n";

async fn connect(kernel: &Kernel) -> (Client, Pushes) {
    let address = Address::Unix(kernel.socket_path());
    let (client, pushes) = Client::connect(vec![address], Options::default())
        .await
        .unwrap();
    (client, pushes)
}

fn gate(client: &Client) -> Gate {
    Gate::new(client.clone(), "circus", WORKER, 1)
}

async fn start(client: &Client, means: &Means, argv: &[&str]) -> Process {
    let argv = argv.iter().map(|word| ByteString::from(*word)).collect();
    let mut make = ops::ProcessMake::new(Name::new(WORKER).unwrap(), argv);
    make.env_inherit = true;
    if let Some((name, value)) = &means.variable {
        make.env
            .0
            .insert((*name).to_owned(), ByteString::from(value.as_str()));
    }
    make.descriptors.extend(means.descriptor.clone());
    client.call(make).await.unwrap().process
}

async fn end(client: &Client, process: &Process) {
    procfs::signal(
        i32::try_from(process.pid).unwrap(),
        nix::sys::signal::Signal::SIGKILL,
    );
    let pid = process.pid;
    wait_until("the worker is gone", || {
        !procfs::alive(i32::try_from(pid).unwrap())
    });
    let deadline = Instant::now() + SOON;
    loop {
        let serials = vec![process.serial];
        let remove = ops::ProcessRemove {
            serials: serials.clone(),
            ..ops::ProcessRemove::default()
        };
        let _ = client.call(ops::ExitAck { serials }).await;
        let _ = client.call(remove).await;
        let list = ops::ProcessList {
            names: vec![NamePattern::new(WORKER)],
            serials: Vec::new(),
        };
        if client.call(list).await.unwrap().processes.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "the kernel forgets the worker");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn held_count(client: &Client) -> usize {
    let names = vec![held("circus")];
    let held = client.call(ops::HoldList { names }).await.unwrap();
    held.held.len()
}

fn soon() -> Instant {
    Instant::now() + SOON
}

#[tokio::test]
async fn ready_said_without_a_manager_is_heard_by_the_next_one() {
    let mut kernel = Kernel::start();
    let (client, pushes) = connect(&kernel).await;
    let ready = Readiness::Notify;
    let means = gate(&client).prepare(&ready).await.unwrap();
    // Says it after we are gone, and a kernel too.
    let go = kernel.path("go");
    let said = kernel.path("said");
    let script = format!(
        "until [ -e {go} ]; do sleep 0.02; done; python3 -c \"$SAY\" STATUS=almost READY=1; echo > {said}; exec sleep 1000"
    );
    let script = format!("SAY=\"{SAY}\"; {script}");
    let worker = start(&client, &means, &["sh", "-c", &script]).await;
    let early = gate(&client)
        .wait(&ready, None, Instant::now() + Duration::from_millis(50))
        .await;
    assert!(matches!(early, Err(ProbeError::NotReady(_))), "{early:?}");
    drop((client, pushes));
    kernel.kill_kernel();
    std::fs::write(&go, "").unwrap();
    wait_until("the worker has said it", || {
        std::path::Path::new(&said).exists()
    });
    let (client, _pushes) = connect(&kernel).await;
    let gate = gate(&client);
    gate.wait(&ready, None, soon()).await.unwrap();
    // The next one is killed before it keeps that.
    gate.wait(&ready, None, soon()).await.unwrap();
    // A start asked for again, its answer lost: the worker's own socket.
    assert_eq!(gate.prepare(&ready).await.unwrap(), means);
    gate.discard().await.unwrap();
    gate.discard().await.unwrap();
    assert_eq!(held_count(&client).await, 0);
    let nothing = gate.wait(&ready, None, soon()).await;
    assert!(
        matches!(nothing, Err(ProbeError::NotPrepared(_))),
        "{nothing:?}"
    );
    end(&client, &worker).await;
}

#[tokio::test]
async fn what_an_earlier_worker_said_is_not_taken_for_the_next_ones() {
    let kernel = Kernel::start();
    let (client, _pushes) = connect(&kernel).await;
    let gate = gate(&client);
    for ready in [Readiness::Notify, Readiness::Fd(7)] {
        let means = gate.prepare(&ready).await.unwrap();
        let script =
            format!("[ -z \"$NOTIFY_SOCKET\" ] && echo >&7 || python3 -c \"{SAY}\" READY=1");
        let worker = start(&client, &means, &["sh", "-c", &script]).await;
        gate.wait(&ready, None, soon()).await.unwrap();
        end(&client, &worker).await;
        // Nobody discarded anything.
        let means = gate.prepare(&ready).await.unwrap();
        let worker = start(&client, &means, &["sleep", "1000"]).await;
        let answer = gate
            .wait(&ready, None, Instant::now() + Duration::from_millis(100))
            .await;
        assert!(matches!(answer, Err(ProbeError::NotReady(_))), "{answer:?}");
        end(&client, &worker).await;
        gate.discard().await.unwrap();
    }
    assert_eq!(held_count(&client).await, 0);
}

#[tokio::test]
async fn a_line_on_a_descriptor_is_heard_and_its_closing_too() {
    let mut kernel = Kernel::start();
    let (client, pushes) = connect(&kernel).await;
    let ready = Readiness::Fd(7);
    let means = gate(&client).prepare(&ready).await.unwrap();
    let worker = start(
        &client,
        &means,
        &["sh", "-c", "echo ok >&7; exec 7>&-; exec sleep 1000"],
    )
    .await;
    drop((client, pushes));
    kernel.upgrade();
    let (client, _pushes) = connect(&kernel).await;
    let gate = gate(&client);
    gate.wait(&ready, None, soon()).await.unwrap();
    gate.wait(&ready, None, soon()).await.unwrap();
    gate.discard().await.unwrap();
    end(&client, &worker).await;

    let means = gate.prepare(&ready).await.unwrap();
    let worker = start(&client, &means, &["sh", "-c", "exec 7>&-; exec sleep 1000"]).await;
    let closed = gate.wait(&ready, None, soon()).await.unwrap_err();
    assert!(
        closed.to_string().contains("descriptor 7 was closed"),
        "{closed}"
    );
    end(&client, &worker).await;
    // Gone with its worker: no need to wait for the time to pass.
    gate.discard().await.unwrap();
    let means = gate.prepare(&ready).await.unwrap();
    let worker = start(&client, &means, &["false"]).await;
    assert!(gate.wait(&ready, None, soon()).await.is_err());
    end(&client, &worker).await;
}

#[tokio::test]
async fn waiting_for_a_connection_leaves_it_to_the_worker() {
    let kernel = Kernel::start();
    let (client, _pushes) = connect(&kernel).await;
    let name = Name::new("circus.web").unwrap();
    let mut make = ops::SocketMake::new(name.clone());
    make.host = Some("127.0.0.1".to_owned());
    make.port = Some(0);
    let made = client.call(make).await.unwrap();
    let names = vec![name.to_string()];
    let waiting = demand::wait(&client, &names);
    tokio::pin!(waiting);
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    let port = made.socket.port.unwrap();
    let _visitor = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let first = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(first, 0);
    let fetch = ops::SocketFetch { name };
    let (_, listener): (_, OwnedFd) = client.call_for_descriptor(fetch).await.unwrap();
    // Blocking, as it was made: this returns because there is one to take.
    std::net::TcpListener::from(listener).accept().unwrap();
    let error = demand::wait(&client, &["circus.nope".to_owned()]).await;
    let Err(ProbeError::Client(error)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
}
