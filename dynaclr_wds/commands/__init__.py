"""The commands of `dynaclr-wds`, one file each."""
