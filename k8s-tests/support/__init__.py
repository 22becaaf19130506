"""What `make up`, `make test` and the tests share: images, releases, questions, waiting, dumps."""
