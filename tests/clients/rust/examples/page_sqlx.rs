// The frame and the block of docs/from-your-language.md: ../../python/test_page.py puts them together.
include!(env!("PAGE_SQLX"));
