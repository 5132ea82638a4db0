"""One file for each schema. What was released is never edited."""
