-- Writes the function that tests/sqlx.rs includes. NULLs in the array of expected values need a type of their own.
\pset tuples_only on
\pset format unaligned
\echo 'async fn problems(conn: &mut PgConnection) -> Vec<String> {'
\echo 'let mut problems = Vec::new();'
SELECT format('problems.extend(call!(conn, r#"%s"#, [%s], %s, [%s]));',
              replace(statement, ' AS expected', ' AS "expected!: Vec<Option<String>>"'),
              (SELECT string_agg(coalesce('Some(r#"' || arg || '"#)', 'None::<&str>'), ', ' ORDER BY n)
                 FROM unnest(args) WITH ORDINALITY AS a (arg, n)),
              coalesce('Some("' || error || '")', 'None'), array_to_string(columns, ', '))
  FROM calls('sqlx') ORDER BY number;
\echo 'problems'
\echo '}'
