"""The commands of `python -m dynaclr_wds`, one file each."""
