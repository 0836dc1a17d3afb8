"""What smeared-key detection rests on: second moments over lags, and how their maps lie."""
