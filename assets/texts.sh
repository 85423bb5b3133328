#!/bin/sh
# Makes the texts that the bundled models were trained on, one paragraph a line, into the folder given.
# Jane Austen's six novels and the King James Bible, both in the public domain, as two Debian packages ship them:
#   apt-get install r-cran-janeaustenr bible-kjv perl
set -e
mkdir -p "$1"
cd "$1"
Rscript -e 'library(janeaustenr); books <- austen_books()
for (title in levels(books$book)) {
  name <- gsub("[^a-z]+", "-", tolower(sub("&", "and", title)))
  writeLines(books$text[books$book == title], paste0(name, ".lines"), useBytes = TRUE)
}'
for lines in *.lines; do
  # Paragraphs are separated by blank lines; inside them, line ends are only typography.
  perl -00 -ne '$_ = join " ", split; print $first++ ? "\n\n$_" : $_ if length; END { print "\n" }' "$lines" > "${lines%.lines}.txt"
  rm "$lines"
done
# "Ge1:2 And the earth ...": a chapter becomes a paragraph.
bible -f 'Gen1:1-Rev22:21' | perl -ne '
  s/\s+$//;
  next unless /^(\d?[A-Za-z]+\d+):\d+ (.*)/;
  print defined $chapter ? ($chapter eq $1 ? " " : "\n\n") : "", $2;
  $chapter = $1;
  END { print "\n" }' > bible.txt
