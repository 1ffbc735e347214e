"""The border with diffusers: each architecture behind the one face of `interfaces.Family`, siblings independent."""



