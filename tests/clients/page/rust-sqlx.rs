use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

// THE BLOCK

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let pool = PgPool::connect_with(PgConnectOptions::new()).await.expect("the server takes connections"); // PGHOST and others say where
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input can be read");
        let words: Vec<_> = line.split(' ').collect();
        let key = words[1].parse().expect("a number");
        if words[0] == "enroll" {
            println!("{}", enroll(&pool, key).await.expect("an enrollment"));
        } else {
            println!("{}", second_factor(&pool, key, words.get(2).copied()).await);
        }
    }
}
