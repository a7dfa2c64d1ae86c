<?php
declare(strict_types=1);

final class User
{
    public function __construct(public readonly int $id)
    {
    }
}

// THE BLOCK

$pdo = new PDO(sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE')), getenv('PGUSER'));
while (($line = fgets(STDIN)) !== false) {
    $words = explode(' ', rtrim($line));
    $user = new User((int) $words[1]);
    echo $words[0] === 'enroll' ? enroll($pdo, $user) : second_factor($pdo, $user, $words[2] ?? null), "\n";
}
