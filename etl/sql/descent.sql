-- From which root each track descends: roots first, then daughters, then theirs.
-- In:  links (track, parent, kept)
-- Row: one track that descends from a root; tracks in a cycle, and what descends from them, have none.
-- Out: track
--      root       the track's oldest ancestor, itself for a root
--      ancestor   the nearest ancestor with kept observations; NULL without any
--      kept
WITH RECURSIVE descent AS (
    SELECT track, track AS root, NULL::INTEGER AS ancestor, kept
    FROM links
    WHERE parent IS NULL
    UNION ALL
    SELECT
        links.track,
        descent.root,
        CASE WHEN descent.kept THEN descent.track ELSE descent.ancestor END,
        links.kept
    FROM descent
    JOIN links ON links.parent = descent.track
)
SELECT * FROM descent
