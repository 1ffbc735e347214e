-- In answers, model was rated on axis, or stood left of other. said is the level, or left, right, tie; NULL takes an answer
-- back.
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE models (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, label TEXT NOT NULL);
CREATE TABLE items (
    item INTEGER PRIMARY KEY, prompt TEXT NOT NULL, seed INTEGER, digest TEXT NOT NULL
);
CREATE TABLE annotators (
    annotator INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE answers (
    answer INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator INTEGER NOT NULL REFERENCES annotators,
    request TEXT NOT NULL,
    item INTEGER NOT NULL REFERENCES items,
    model TEXT NOT NULL REFERENCES models (key),
    other TEXT REFERENCES models (key),
    axis TEXT,
    said TEXT,
    at REAL NOT NULL,
    UNIQUE (annotator, request),
    CHECK ((other IS NULL) <> (axis IS NULL))
);
CREATE TRIGGER answers_stay BEFORE DELETE ON answers BEGIN
    SELECT RAISE(ABORT, 'answers are never deleted');
END;
CREATE TRIGGER answers_stand BEFORE UPDATE ON answers BEGIN
    SELECT RAISE(ABORT, 'answers are never changed');
END;
CREATE VIEW counted AS SELECT * FROM answers
    WHERE said IS NOT NULL AND answer IN (
        SELECT max(answer) FROM answers GROUP BY annotator, item, model, other, axis
    );
