r"""Stage-wise linear algebra.

Symbols, in every file of this folder. One trajectory, time first; stages `t = 0 ... T-1`.

    n, m, T          sizes of state, control, horizon
    tau = [x; u]     state and control of a stage, n + m
    H     (T, n+m, n+m)   stage Hessian, blocks H_xx, H_ux, H_uu
    H_N   (n, n)          Hessian of the terminal cost
    F     (T, n, n+m)     dynamics Jacobian [F_x F_u]
    g, g_N                linear terms of the cost, (T, n+m) and (n,)
    r     (T, n)          offsets of the dynamics: x_{t+1} = F_t tau_t + r_t
    Q_t = H_t + F_t' V_{t+1} F_t,  V_N = H_N        (Riccati recursion; DiffMPC, appendix A)
    K_t = -Q_ff^-1 Q_fx                             gain on the free controls, zero rows elsewhere
    V_t = Q_xx + Q_xu K_t                           Hessian of the cost-to-go
    free  (T, m)          True where a control may move
"""
