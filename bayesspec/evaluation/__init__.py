"""Is it right? Stars of the model whose truth is known, and what a correct posterior makes of them."""
