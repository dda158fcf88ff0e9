"""Any number of spectra: in a stream, over processes or a cluster, stopped at any time and gone on with."""
