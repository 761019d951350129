-- Which annotation each kept observation has: one of its own, or one of its track.
-- In:  placed (row, fov, track_id, t, reason)
--      annotations (annotation, fov, track_id, t): fov is NULL for a FOV that is not built, t for all of a track
-- Row: one kept observation that has an annotation.
-- Out: row          of the track files
--      annotation   of the annotation tables
SELECT
    placed.row,
    coalesce(own.annotation, whole.annotation) AS annotation
FROM placed
LEFT JOIN annotations AS own
    ON own.fov = placed.fov AND own.track_id = placed.track_id AND own.t = placed.t
LEFT JOIN (SELECT annotation, fov, track_id FROM annotations WHERE t IS NULL) AS whole
    ON whole.fov = placed.fov AND whole.track_id = placed.track_id
WHERE placed.reason IS NULL AND (own.annotation IS NOT NULL OR whole.annotation IS NOT NULL)
