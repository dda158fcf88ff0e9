"""The benchmark: is it right, and is it better than what people use instead?"""
