-- Which tracks there are, and whose daughters they say they are.
-- In:  placed (fov, track_id, parent_track_id, reason): the track files; -1 stands for no parent.
-- Row: one track of the track files, whether or not any observation of it is kept.
-- Out: track                   number of the track in order of (fov, track_id)
--      fov, track_id
--      parent_track_id         as written
--      other_parent_track_id   differs from parent_track_id where the track's rows disagree
--      kept                    whether any observation of the track is kept
SELECT
    (row_number() OVER (ORDER BY fov, track_id) - 1)::INTEGER AS track,
    fov,
    track_id,
    min(parent_track_id) AS parent_track_id,
    max(parent_track_id) AS other_parent_track_id,
    bool_or(reason IS NULL) AS kept
FROM placed
GROUP BY fov, track_id
ORDER BY track
