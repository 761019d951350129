-- Which track follows from which.
-- In:  tracks (track, fov, track_id, parent_track_id, kept)
-- Row: one track of the track files.
-- Out: track
--      parent   number of the parent track; NULL for a root: no parent, or one that is not in the table
--      kept     whether any observation of the track is kept
SELECT
    tracks.track,
    parent.track AS parent,
    tracks.kept
FROM tracks
LEFT JOIN tracks AS parent
    ON parent.fov = tracks.fov AND parent.track_id = tracks.parent_track_id
