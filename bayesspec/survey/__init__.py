"""Any number of spectra: in a stream, with processes or a cluster, in runs that can stop and continue."""
