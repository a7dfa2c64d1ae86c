use tokio_postgres::{Client, Config, Error, NoTls};

// THE BLOCK

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let env = |name| std::env::var(name).expect("tests/run-clients runs this");
    let mut config = Config::new();
    config.host(env("PGHOST")).port(env("PGPORT").parse().expect("a port")).dbname(env("PGDATABASE")).user(env("PGUSER"));
    let (client, connection) = config.connect(NoTls).await.expect("the server takes connections");
    tokio::spawn(connection);
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input can be read");
        let words: Vec<_> = line.split(' ').collect();
        let key = words[1].parse().expect("a number");
        if words[0] == "enroll" {
            println!("{}", enroll(&client, key).await.expect("an enrollment"));
        } else {
            println!("{}", second_factor(&client, key, words.get(2).copied()).await);
        }
    }
}
